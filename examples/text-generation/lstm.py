"""A character LSTM: one layer, forward and backward by hand, on whatever array module it is given.

The array module is called ``xp``, as usual where NumPy and CuPy take each other's place: nothing here imports either.
Shapes are named by T (characters in a row), B (rows at a time), V (size of the vocabulary) and H (hidden units).

Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997); with the forget gate of Gers,
Schmidhuber and Cummins (2000).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

Array = Any
Arrays = dict[str, Array]
State = tuple[Array, Array]


def host(array: Array) -> Array:
    """The array in the host's memory: CuPy's arrays have ``get``, NumPy's are there already."""
    return array.get() if hasattr(array, "get") else array


class CharacterLSTM:
    """The network.

    Attributes:
        xp: The array module.
        parameters: ``input`` (V, 4H), ``recurrent`` (H, 4H), ``bias`` (4H), ``output`` (H, V), ``output_bias`` (V).
            The four gates lie side by side: input, forget, output, candidate.
    """

    def __init__(self, xp: ModuleType, parameters: Arrays) -> None:
        self.xp = xp
        self.parameters = {name: xp.asarray(array) for name, array in parameters.items()}
        self.hidden = parameters["recurrent"].shape[0]
        dtype = parameters["recurrent"].dtype
        # sigmoid(z) = tanh(z / 2) / 2 + 1 / 2, so that one tanh serves all four gates.
        self._scale = xp.full(4 * self.hidden, 0.5, dtype)
        self._scale[3 * self.hidden :] = 1.0
        self._shift = 1 - self._scale

    @classmethod
    def fresh(cls, xp: ModuleType, rng: Any, vocabulary: int, hidden: int, dtype: str) -> CharacterLSTM:
        """A network with random weights. ``rng`` is NumPy's on every device, so that a seed means the same on each."""

        def uniform(*shape: int) -> Array:
            return (rng.uniform(-1, 1, shape) / hidden**0.5).astype(dtype)

        parameters = {
            "input": uniform(vocabulary, 4 * hidden),
            "recurrent": uniform(hidden, 4 * hidden),
            "bias": uniform(4 * hidden) * 0,
            "output": uniform(hidden, vocabulary),
            "output_bias": uniform(vocabulary) * 0,
        }
        # Remember at first: a forget gate that starts half closed loses the gradient within a few characters.
        parameters["bias"][hidden : 2 * hidden] = 1
        return cls(xp, parameters)

    def start(self, rows: int) -> State:
        """Hidden and cell state before the first character."""
        shape, dtype = (rows, self.hidden), self.parameters["recurrent"].dtype
        return self.xp.zeros(shape, dtype), self.xp.zeros(shape, dtype)

    def step(self, characters: Array, state: State) -> tuple[Array, State]:
        """Read one character a row (B) and return the log-probabilities (B, V) of the next, and the state."""
        hidden, _, cell, _ = self._run(characters[None], state)
        return self._log_probabilities(hidden[-1]), (hidden[-1], cell[-1])

    def loss(self, characters: Array, targets: Array, state: State) -> tuple[Array, State]:
        """Mean cross entropy in nats per character of ``targets`` (T, B) after ``characters`` (T, B)."""
        hidden, _, cell, _ = self._run(characters, state)
        log_probabilities = self._log_probabilities(hidden[1:].reshape(-1, self.hidden))
        return self._mean_loss(log_probabilities, targets), (hidden[-1], cell[-1])

    def loss_and_gradients(self, characters: Array, targets: Array) -> tuple[Array, Arrays]:
        """The loss from a fresh state, and its gradient by every parameter: back-propagation through time."""
        xp, p, size = self.xp, self.parameters, self.hidden
        length, rows = characters.shape
        hidden, gates, cell, cell_tanh = self._run(characters, self.start(rows))
        flat_hidden = hidden[1:].reshape(-1, size)
        log_probabilities = self._log_probabilities(flat_hidden)
        loss = self._mean_loss(log_probabilities, targets)

        # Softmax and cross entropy together: probability minus one at the target.
        d_logits = xp.exp(log_probabilities)
        d_logits[xp.arange(length * rows), targets.reshape(-1)] -= 1
        d_logits /= length * rows
        d_hidden = (d_logits @ p["output"].T).reshape(length, rows, size)

        d_gates = xp.empty_like(gates)
        d_next_hidden, d_next_cell = xp.zeros_like(hidden[0]), xp.zeros_like(cell[0])
        for t in reversed(range(length)):
            write, forget, read, candidate = (gates[t, :, k * size : (k + 1) * size] for k in range(4))
            d_h = d_hidden[t] + d_next_hidden
            d_c = d_h * read * (1 - cell_tanh[t] ** 2) + d_next_cell
            d_gates[t, :, :size] = d_c * candidate * write * (1 - write)
            d_gates[t, :, size : 2 * size] = d_c * cell[t] * forget * (1 - forget)
            d_gates[t, :, 2 * size : 3 * size] = d_h * cell_tanh[t] * read * (1 - read)
            d_gates[t, :, 3 * size :] = d_c * write * (1 - candidate**2)
            d_next_hidden = d_gates[t] @ p["recurrent"].T
            d_next_cell = d_c * forget

        flat_gates = d_gates.reshape(-1, 4 * size)
        # A product with one-hot rows instead of a scattered sum: the order of its additions is fixed, also on a GPU.
        one_hot = xp.zeros((length * rows, p["input"].shape[0]), d_gates.dtype)
        one_hot[xp.arange(length * rows), characters.reshape(-1)] = 1
        return loss, {
            "input": one_hot.T @ flat_gates,
            "recurrent": hidden[:-1].reshape(-1, size).T @ flat_gates,
            "bias": flat_gates.sum(axis=0),
            "output": flat_hidden.T @ d_logits,
            "output_bias": d_logits.sum(axis=0),
        }

    def _run(self, characters: Array, state: State) -> tuple[Array, Array, Array, Array]:
        """Hidden states (T + 1, B, H), gates (T, B, 4H), cell states (T + 1, B, H) and their tanh (T, B, H)."""
        xp, p, size = self.xp, self.parameters, self.hidden
        length, rows = characters.shape
        gates = p["input"][characters] + p["bias"]
        hidden = xp.empty((length + 1, rows, size), gates.dtype)
        cell, cell_tanh = xp.empty_like(hidden), xp.empty((length, rows, size), gates.dtype)
        hidden[0], cell[0] = state
        for t in range(length):
            z = gates[t]
            z += hidden[t] @ p["recurrent"]
            z *= self._scale
            xp.tanh(z, out=z)
            z *= self._scale
            z += self._shift
            write, forget, read, candidate = (z[:, k * size : (k + 1) * size] for k in range(4))
            cell[t + 1] = forget * cell[t] + write * candidate
            xp.tanh(cell[t + 1], out=cell_tanh[t])
            hidden[t + 1] = read * cell_tanh[t]
        return hidden, gates, cell, cell_tanh

    def _log_probabilities(self, hidden: Array) -> Array:
        logits = hidden @ self.parameters["output"] + self.parameters["output_bias"]
        logits -= logits.max(axis=1, keepdims=True)
        logits -= self.xp.log(self.xp.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def _mean_loss(self, log_probabilities: Array, targets: Array) -> Array:
        targets = targets.reshape(-1)
        return -log_probabilities[self.xp.arange(targets.shape[0]), targets].mean()


class Adam:
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), with the gradient's norm clipped first.

    Attributes:
        mean: Running mean of each gradient.
        square: Running mean of its square.
        steps: Updates so far.
    """

    CLIP = 5.0
    DECAY = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, model: CharacterLSTM, learning_rate: float) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.mean = {name: model.xp.zeros_like(array) for name, array in model.parameters.items()}
        self.square = {name: model.xp.zeros_like(array) for name, array in model.parameters.items()}
        self.steps = 0

    def update(self, gradients: Arrays) -> None:
        """Change the model's parameters in place."""
        self.steps += 1
        norm = float(sum((gradient**2).sum() for gradient in gradients.values())) ** 0.5
        clip = min(1.0, self.CLIP / (norm + self.EPSILON))
        first, second = self.DECAY
        rate = self.learning_rate * (1 - second**self.steps) ** 0.5 / (1 - first**self.steps)
        for name, gradient in gradients.items():
            mean, square = self.mean[name], self.square[name]
            mean += (1 - first) * (clip * gradient - mean)
            square += (1 - second) * ((clip * gradient) ** 2 - square)
            self.model.parameters[name] -= rate * mean / (self.model.xp.sqrt(square) + self.EPSILON)
