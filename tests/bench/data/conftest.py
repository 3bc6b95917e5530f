import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.volumes import BRATS_AFFINE


@pytest.fixture
def small_folder(tmp_path) -> Path:
    """Two subjects in BraTS2020's layout, of 26 x 30 x 22 voxels, which may be damaged."""
    folder = tmp_path / "brats"
    rng = np.random.default_rng(0)
    for number in (1, 2):
        name = f"BraTS20_Training_{number:03d}"
        (folder / name).mkdir(parents=True)
        for modality in ("t1", "t2"):
            voxels = np.zeros((26, 30, 22), dtype=np.int16)
            voxels[4:20, 3:25, 5:20] = rng.integers(1, 1000, size=(16, 22, 15))
            content = nib.Nifti1Image(voxels, BRATS_AFFINE).to_bytes()
            (folder / name / f"{name}_{modality}.nii.gz").write_bytes(gzip.compress(content, 1))
    return folder
