"""One NVIDIA card through NVML: the only file that knows `pynvml`.

Every reading is a number or None: what a driver does not support or refuses is None, and the reason
is kept in `Card.warnings`, one line for each kind of reading, for the record.

`pynvml` is imported when a card is asked for and not before: it belongs to the package
`nvidia-ml-py`, but other packages bring modules of that name, old ones, too, and whoever measures a
CPU needs none. What such a module lacks is a reading that is not there.
"""

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import last_line
from ..records.rows import CardState, Reading
from . import Span
from .host import is_ours

T = TypeVar("T")

POWER_CAP = "power cap"
# The reasons that mean "slower than asked": the others (idle, user's clock setting) do not. NVML's
# own bits: `pynvml` has them under two names (nvmlClocksThrottleReason… before 12).
_THROTTLE_REASONS = {
    POWER_CAP: 0x4,
    "hardware slowdown": 0x8,
    "software thermal slowdown": 0x20,
    "hardware thermal slowdown": 0x40,
    "power brake": 0x80,
}
_MEND = "pip install --upgrade nvidia-ml-py"
_NEEDED = (
    "NVMLError", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_NOT_SUPPORTED", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUUID", "nvmlInit",
)  # fmt: skip


PATIENCE_S = 30.0
"""For a call of NVML to come back; a driver with many cards takes seconds to start."""


class NoAnswer(Exception):
    """A call of NVML did not come back; nothing can end it."""

    def __str__(self) -> str:
        return f"the driver does not answer ({PATIENCE_S:g} s)"


class CardUnavailable(Exception):
    """Why there is no card to read, in a line: no driver, no permission, no such card."""


def driver_version() -> str | None:
    """Of NVIDIA's driver, such as "535.104.05"; None where there is none, or no way to ask it."""
    try:
        nvml = _library()
    except CardUnavailable:
        return None

    def ask() -> str:
        nvml.nvmlInit()
        return _text(nvml.nvmlSystemGetDriverVersion())

    try:
        return _patiently(ask)
    except (nvml.NVMLError, AttributeError, NoAnswer):
        return None


def visible_cards(count: int) -> list[dict[str, Any]]:
    """Name and memory of the cards that PyTorch calls `cuda:0` to `cuda:count - 1`.

    PyTorch, too, could tell them, but may take a context on a card to do so: some hundred MiB and
    tens of watts, for as long as the process lives. None: NVML does not tell.
    """
    cards: list[dict[str, Any]] = []
    for index in range(count):
        try:
            card = Card.open(index)
        except CardUnavailable:
            cards.append({"name": None, "memory_bytes": None})
        else:
            card.patient = True
            cards.append({"name": card.name(), "memory_bytes": card.memory_bytes()})
    return cards


def _library() -> Any:
    """The module `pynvml`; CardUnavailable where there is none that can be used."""
    try:
        import pynvml
    except Exception as error:  # whatever an old or foreign module raises as it is loaded
        raise CardUnavailable(f"NVML: {last_line(error)} ({_MEND})") from None
    if missing := [name for name in _NEEDED if not hasattr(pynvml, name)]:
        raise CardUnavailable(f"NVML: this pynvml has no {missing[0]} ({_MEND})")
    return pynvml


class Card:
    """A card as NVML knows it."""

    def __init__(self, handle: Any, *notes: str) -> None:
        self._nvml = _library()
        self._handle = handle
        self._notes = list(notes)
        self._refusals: dict[str, str] = {}
        self._refused: Counter[str] = Counter()
        self._unsupported: set[str] = set()
        self.patient = False
        """Whether a reading that does not come back is given up after `PATIENCE_S`.

        That costs a thread each: for the benchmark's own process. In a trial, `polling` gives up.
        """
        self._silent = False  # a call did not come back: no other is made

    @classmethod
    def open(cls, index: int = 0, visible: str | None = None) -> "Card":
        """The card that PyTorch calls `cuda:index`; CardUnavailable where it cannot be read.

        Args:
            visible: stands for CUDA_VISIBLE_DEVICES: indices, UUIDs (or their beginnings), MIG ids.
                Indices are NVML's, those of nvidia-smi, which CUDA shares under
                CUDA_DEVICE_ORDER=PCI_BUS_ID (`bench.cli` sets it).
        """
        if visible is None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            name = str(index)
        else:
            name = dict(enumerate(visible.split(","))).get(index, "").strip()
        nvml = _library()

        def find() -> Card:
            nvml.nvmlInit()
            return cls._find(nvml, name)

        try:
            return _patiently(find)
        except (nvml.NVMLError, AttributeError, NoAnswer) as error:
            which = f"card {name}" if name else "no visible card"
            mend = f" ({_MEND})" if isinstance(error, AttributeError) else ""
            raise CardUnavailable(f"NVML, {which}: {error}{mend}") from None

    @classmethod
    def _find(cls, nvml: Any, name: str) -> "Card":
        if name.isdigit():
            return cls(nvml.nvmlDeviceGetHandleByIndex(int(name)))
        if name.startswith("MIG-"):
            instance = nvml.nvmlDeviceGetHandleByUUID(name)
            return cls(
                nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance),
                "MIG instance: power, energy and temperature are those of the whole card",
            )
        for candidate in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(candidate)
            if name and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name):
                return cls(handle)
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)

    @property
    def warnings(self) -> list[str]:
        """What could not be read, and how often, in a line each."""
        return self._notes + [
            f"NVML {what}: {error}"
            + ("" if what in self._unsupported else f" ({self._refused[what]} readings missed)")
            for what, error in self._refusals.items()
        ]

    def name(self) -> str | None:
        name = self._read("name", lambda nvml, card: nvml.nvmlDeviceGetName(card))
        return None if name is None else _text(name)

    def capability(self) -> tuple[int, int] | None:
        """CUDA's compute capability, such as (9, 0) for Hopper."""
        found = self._read(
            "compute capability",
            lambda nvml, card: nvml.nvmlDeviceGetCudaComputeCapability(card),
        )
        return None if found is None else (int(found[0]), int(found[1]))

    def memory_bytes(self) -> int | None:
        """All memory of the board; CUDA gives out a little less."""
        info = self._read("memory", lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card))
        return None if info is None else info.total

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded, in joules (counter of 1 mJ; Volta and later)."""
        return _scaled(
            self._read(
                "energy counter", lambda nvml, card: nvml.nvmlDeviceGetTotalEnergyConsumption(card)
            )
        )

    def used_bytes(self) -> int | None:
        """Memory of the whole card in use: contexts, pools, and what the driver keeps."""
        info = self._read("memory", lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card))
        return None if info is None else info.used

    def power_w(self) -> float | None:
        """Power drawn by the board, in watts; from Ampere on a mean over the last second."""
        return _scaled(self._read("power", lambda nvml, card: nvml.nvmlDeviceGetPowerUsage(card)))

    def temperature_c(self) -> float | None:
        """Temperature of the chip, in whole degrees Celsius."""
        return self._read(
            "temperature",
            lambda nvml, card: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
        )

    def utilization_percent(self) -> float | None:
        """Share of the last sample period (1/6 to 1 s) in which a kernel ran."""
        rates = self._read(
            "utilisation", lambda nvml, card: nvml.nvmlDeviceGetUtilizationRates(card)
        )
        return None if rates is None else rates.gpu

    def clock_mhz(self) -> float | None:
        """Clock of the multiprocessors, in MHz."""
        return self._read(
            "clock", lambda nvml, card: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)
        )

    def throttle_reasons(self) -> list[str]:
        """Why the card is slower than asked at this moment; empty if it is not."""
        bits = self._read("throttle reasons", _throttle_bits)
        return [name for name, bit in _THROTTLE_REASONS.items() if bits is not None and bits & bit]

    def processes(self, known: Collection[int] = ()) -> set[int]:
        """Ids of the processes that compute on the card, but for ours and those that are `known`.

        They are the driver's. Inside a container those are often not the ids that the container
        knows, and ours cannot be told from others.
        """
        running = self._read(
            "processes", lambda nvml, card: nvml.nvmlDeviceGetComputeRunningProcesses(card)
        )
        ids = {process.pid for process in running or []}.difference(known)
        return {pid for pid in ids if not is_ours(pid)}

    def _read(self, what: str, function: Callable[[Any, Any], T]) -> T | None:
        if what in self._unsupported:
            return None
        nvml = self._nvml
        if self._silent:
            self._refused[what] += 1
            return None
        try:
            if self.patient:
                return _patiently(lambda: function(nvml, self._handle))
            return function(nvml, self._handle)
        except NoAnswer as error:
            self._silent = True
            self._refusals.setdefault(what, str(error))
            self._refused[what] += 1
            return None
        except AttributeError as error:  # an old `pynvml`, without this reading
            self._unsupported.add(what)
            self._refusals.setdefault(what, f"{error} ({_MEND})")
            return None
        except nvml.NVMLError as error:
            unsupported = nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND
            if error.value in unsupported:
                self._unsupported.add(what)
            self._refusals.setdefault(what, str(error))
            self._refused[what] += 1
            return None


@dataclass(frozen=True, slots=True)
class _Look:
    """What a card was doing at a moment."""

    time: float
    throttled: list[str]
    newcomers: set[int]
    clock_mhz: float | None


class CardProbe:
    """Load, clock and throttling of the card over the window, and other processes on it.

    Args:
        clock: seconds, that of the window.
    """

    def __init__(self, card: Card, clock: Callable[[], float] = time.perf_counter) -> None:
        self.card = card
        self.clock = clock

    def start(self) -> None:
        self._looks: list[_Look] = []
        # Ours are on the card by now, under whatever id. Whoever was there before the trial, the
        # parent has seen.
        self._expected = self.card.processes()

    def sample(self) -> Reading:
        now, card = self.clock(), self.card
        self._looks.append(
            _Look(now, card.throttle_reasons(), card.processes(self._expected), card.clock_mhz())
        )
        return Reading(utilization_percent=card.utilization_percent())

    def stop(self, window: Span | None = None) -> CardState:
        inside = [look for look in self._looks if window is None or window.has(look.time)]
        looks = inside or self._looks
        throttled = Counter(reason for look in looks for reason in look.throttled)
        shares = {
            reason: f"{reason} in {count} of {len(looks)} readings"
            for reason, count in throttled.items()
        }
        # A card under load often works at its power cap; that is its normal speed.
        contention = [f"throttled: {text}" for name, text in shares.items() if name != POWER_CAP]
        if newcomers := set[int]().union(*(look.newcomers for look in looks)):
            others = ", ".join(map(str, sorted(newcomers)))
            contention.append(f"another process came to the card: {others}")
        clocks = [look.clock_mhz for look in looks if look.clock_mhz is not None]
        return CardState(
            clock_mean_mhz=sum(clocks) / len(clocks) if clocks else None,
            throttled=", ".join(shares.values()) or None,
            contention=tuple(contention),
            warnings=tuple(self.card.warnings),
        )


def _patiently(call: Callable[[], T]) -> T:
    """What it returns or raises; NoAnswer where it does not come back in `PATIENCE_S`.

    A driver that hangs must not hang the benchmark's own process with it.
    """
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=ask, name="nvml", daemon=True).start()
    try:
        answer, error = answers.get(timeout=PATIENCE_S)
    except queue.Empty:
        raise NoAnswer from None
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


def _throttle_bits(nvml: Any, card: Any) -> int:
    try:
        return nvml.nvmlDeviceGetCurrentClocksEventReasons(card)
    except AttributeError:  # `pynvml` before 12
        pass
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
    return nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)  # drivers before 535


def _scaled(milli: int | None) -> float | None:
    return None if milli is None else milli / 1000


def _text(text: str | bytes) -> str:
    """What old versions of `pynvml` return as bytes."""
    return text.decode() if isinstance(text, bytes) else text
