"""What others build on: the names that the documents promise, used as they say."""

import torch


def test_idm_as_documented():
    from models.idm import IDM, ReversibleSequential

    net = IDM(
        in_channels=1, channels=(8, 16), couplings=1, attention_levels=1, dims=3,
        backward="inverse",
    )  # fmt: skip
    x, t = torch.randn(2, 1, 8, 8, 8), torch.randint(2000, (2,))
    eps = net(x, t)
    assert eps.shape == x.shape
    assert net.inverse(eps).shape == x.shape
    stored = IDM(channels=(8, 16), couplings=1, backward="stored")
    assert sum(p.numel() for p in stored.parameters()) > 0
    assert issubclass(ReversibleSequential, torch.nn.Module)


def test_predict_by_name_and_for_a_network_of_ones_own():
    from bench.predict import predict

    by_name = predict("idm", preset="small", volume=16, batch_size=1, channels=(8, 16))
    assert by_name.peak_memory_bytes == sum(by_name.parts.values()) > 0
    network = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(network.parameters())
    own = predict(network, torch.randn(2, 4), optimizer)
    assert own.parameters == 20
    assert own.parts["parameter"] == 80


def test_the_methods_by_name():
    from bench.methods import METHODS

    names = ["unet", "checkpoint", "patchddm", "idm", "idm-lean", "idm-stored"]
    assert list(METHODS)[: len(names)] == names
    assert METHODS["idm"].name == "idm"


def test_the_version():
    import bench

    assert bench.__version__.count(".") == 2
