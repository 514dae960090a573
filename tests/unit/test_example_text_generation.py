"""The text generation example: the mathematics of its network, and what it keeps."""

import ast
import json
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "text-generation"
MODULES = ("corpus", "lstm", "storage", "train")


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The example's modules can be imported, and what they write lands in an empty folder."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def small_training(**changes: Any) -> Any:
    import corpus
    import train

    text = corpus.from_text("the quick brown fox jumps over the lazy dog. " * 100)
    settings = train.Settings(**{"epochs": 2, "steps": 8, "hidden": 8, "batch": 4, **changes})
    return train.Training(np, "cpu", settings, text)


def weights(training: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in training.model.parameters.items()}


def test_every_gradient_is_the_slope_of_the_loss() -> None:
    from lstm import CharacterLSTM

    rng = np.random.default_rng(3)
    model = CharacterLSTM.fresh(np, rng, vocabulary=5, hidden=4, dtype="float64")
    characters, targets = rng.integers(0, 5, size=(2, 6, 3))
    _, gradients = model.loss_and_gradients(characters, targets)

    def loss() -> float:
        return float(model.loss(characters, targets, model.start(3))[0])

    small = 1e-6
    for name, array in model.parameters.items():
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + small
            above = loss()
            array[place] = kept - small
            slope = (above - loss()) / (2 * small)
            array[place] = kept
            assert math.isclose(gradients[name][place], slope, rel_tol=1e-5, abs_tol=1e-8), (name, place)


def test_characters_read_one_by_one_are_predicted_as_in_a_row() -> None:
    from lstm import CharacterLSTM

    rng = np.random.default_rng(4)
    model = CharacterLSTM.fresh(np, rng, vocabulary=5, hidden=4, dtype="float64")
    characters, targets = rng.integers(0, 5, size=(2, 6, 3))
    state, losses = model.start(3), []
    for row, wanted in zip(characters, targets, strict=True):
        log_probabilities, state = model.step(row, state)
        losses.append(-log_probabilities[np.arange(3), wanted].mean())
    assert math.isclose(np.mean(losses), float(model.loss(characters, targets, model.start(3))[0]))


def test_the_network_takes_its_arrays_from_whoever_calls_it() -> None:
    tree = ast.parse((EXAMPLE / "lstm.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "types", "typing"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


class DeviceArray(np.ndarray):
    """Like an array of CuPy's: it never mixes with an array in the host's memory, unless asked by ``get``."""

    def get(self) -> Any:
        return np.array(self)

    def __getitem__(self, index: Any) -> Any:
        self.no_host_arrays(index if isinstance(index, tuple) else (index,))
        return np.asarray(super().__getitem__(index)).view(DeviceArray)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.no_host_arrays((*(index if isinstance(index, tuple) else (index,)), value))
        super().__setitem__(index, value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        self.no_host_arrays((*inputs, *out))
        plain = [array.view(np.ndarray) if isinstance(array, DeviceArray) else array for array in inputs]
        if out:
            options["out"] = tuple(array.view(np.ndarray) for array in out)
        result = getattr(ufunc, method)(*plain, **options)
        return out[0] if out else np.asarray(result).view(DeviceArray)

    @staticmethod
    def no_host_arrays(values: tuple[Any, ...]) -> None:
        for value in values:
            if isinstance(value, np.ndarray) and not isinstance(value, DeviceArray):
                raise TypeError("implicit conversion to an array of the device")


class DeviceModule(types.ModuleType):
    """NumPy's functions, giving arrays of the device."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        return lambda *arguments, **options: function(*arguments, **options).view(DeviceArray)


def test_nothing_on_the_device_is_mixed_with_what_is_in_the_hosts_memory() -> None:
    import train

    on_host = small_training()
    on_device = train.Training(DeviceModule("device"), "device", on_host.settings, on_host.text)
    for training in (on_host, on_device):
        for _ in range(3):
            training.step()
        training.end_epoch()
        training.save_checkpoint()
        training.resume()
    assert type(on_device.model.parameters["input"]) is DeviceArray
    assert weights(on_device) == weights(on_host)


@pytest.mark.parametrize("gpus", [0, 1])
def test_cupy_is_used_where_a_gpu_answers(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import train

    cupy = types.ModuleType("cupy")
    runtime = types.SimpleNamespace(getDeviceProperties=lambda _: {"name": b"NVIDIA L4"})
    monkeypatch.setattr(cupy, "is_available", lambda: gpus > 0, raising=False)
    monkeypatch.setattr(cupy, "cuda", types.SimpleNamespace(runtime=runtime), raising=False)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert train.choose_device() == ((cupy, "NVIDIA L4") if gpus else (np, "cpu"))


def test_numpy_is_used_where_there_is_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    import train

    monkeypatch.setitem(sys.modules, "cupy", None)
    assert train.choose_device() == (np, "cpu")


def test_the_held_out_part_is_never_trained_on() -> None:
    import corpus

    text = corpus.load()
    assert len(text.text) == corpus.LENGTH == len(text.training) + len(text.held_out)
    assert "".join(text.vocabulary[number] for number in text.held_out) == text.text[-len(text.held_out) :]


def test_every_window_lies_within_the_training_part() -> None:
    import corpus

    places = corpus.Corpus("", "", training=np.arange(40), held_out=np.arange(0))
    characters, targets = places.batch(np.random.default_rng(1), length=32, rows=500)
    assert characters.shape == targets.shape == (32, 500)
    assert (targets == characters + 1).all()
    assert (characters.min(), targets.max()) == (0, 39)


def test_the_unigram_entropy_of_two_characters_in_equal_shares_is_one_bit() -> None:
    import corpus

    assert math.isclose(corpus.from_text("ab" * 50).unigram_entropy, math.log(2))


@pytest.mark.parametrize("stop_after", [3, 8, 11])
def test_a_resumed_training_ends_with_the_same_bits(stop_after: int) -> None:
    def run(training: Any, until: int) -> None:
        while training.progress.steps < until:
            training.step()
            if training.progress.steps % training.settings.steps == 0:
                training.end_epoch()

    whole = small_training()
    run(whole, 16)
    metrics, sample = json.loads(Path("metrics.json").read_text()), Path("samples/epoch-2.txt").read_bytes()
    first = small_training()
    run(first, stop_after)
    first.save_checkpoint()
    second = small_training()
    second.resume()
    assert second.progress.steps == stop_after
    run(second, 16)
    assert weights(second) == weights(whole)
    assert Path("samples/epoch-2.txt").read_bytes() == sample
    again = json.loads(Path("metrics.json").read_text())
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}


def test_the_seed_decides_everything() -> None:
    first, same, other = small_training(), small_training(), small_training(seed=2)
    for training in (first, same, other):
        for _ in range(3):
            training.step()
    assert weights(first) == weights(same)
    assert weights(first) != weights(other)


def test_a_checkpoint_of_another_training_is_refused() -> None:
    small_training().save_checkpoint()
    with pytest.raises(SystemExit, match="hidden 8 there, 16 now"):
        small_training(hidden=16).resume()


def test_more_epochs_may_be_asked_of_a_training_that_has_ended() -> None:
    done = small_training()
    done.step()
    done.save_checkpoint()
    longer = small_training(epochs=9)
    longer.resume()
    assert all(np.array_equal(longer.model.parameters[name], one) for name, one in done.model.parameters.items())


def test_a_file_that_could_not_be_written_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import storage

    path = Path("checkpoints/latest.npz")
    storage.write_arrays(path, {"a": np.arange(3)})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_arrays(path, {"a": np.arange(4)})
    assert storage.read_arrays(path)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("EPOCHS", "many", "EPOCHS must be a number, not 'many'"),
        ("STEPS", "0", "STEPS must be at least 1, not 0"),
        ("DTYPE", "float16", "DTYPE must be float32 or float64, not 'float16'"),
    ],
)
def test_a_setting_that_cannot_work_is_named(variable: str, value: str, message: str) -> None:
    import train

    with pytest.raises(SystemExit, match=message):
        train.Settings.read({variable: value}, gpu=False)


def test_settings_come_from_the_environment_and_else_from_the_device() -> None:
    import train

    chosen = train.Settings.read({"EPOCHS": "7", "LEARNING_RATE": "0.5", "DTYPE": "float64"}, gpu=True)
    assert (chosen.epochs, chosen.learning_rate, chosen.dtype) == (7, 0.5, "float64")
    assert chosen.hidden == train.GPU_DEFAULTS.hidden
    assert train.Settings.read({}, gpu=False) == train.Settings()


def test_the_notebook_is_clean_and_compiles() -> None:
    notebook = json.loads((EXAMPLE / "explore.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), cell["id"], "exec")


def test_glgpu_yml_brings_home_what_the_training_leaves() -> None:
    from glgpu.settings import load_settings

    train = load_settings(EXAMPLE / "glgpu.yml", {}).train
    assert list(train.command) == ["python3", "train.py"]
    assert [path.strip("/") for path in train.outputs] == ["weights", "samples", "metrics.json"]
    assert (train.checkpoints or "").strip("/") == "checkpoints"
