"""Networks of linear layers, of sequences and of mixtures in the zoo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .zoo import enter, rows, tokens, words


@enter(rows(16), moved=("3.weight", "5.weight"), kept=(("0.weight", "its input channels stay"),))
def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 32),
        nn.BatchNorm1d(32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.GELU(),
        nn.Linear(32, 8),
        nn.Softmax(-1),
    )


class Mixer(nn.Module):
    """Over tokens and over channels in turn."""

    def __init__(self, length: int = 16, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(length, 32), nn.GELU(), nn.Linear(32, length))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


enter(tokens(8, 16), moved=("tokens.2.weight", "channels.0.weight", "channels.2.weight"))(Mixer)


class Gated(nn.Module):
    """SwiGLU with both halves in one layer, and one apart."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.both, self.down = nn.Linear(8, 16), nn.Linear(16, 64), nn.Linear(32, 16)
        self.gate, self.up, self.out = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 4)
        self.norm = nn.RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        gate, up = self.both(self.norm(x)).chunk(2, dim=-1)
        x = x + self.down(F.silu(gate) * up)
        return self.out(F.silu(self.gate(x)) * self.up(x))


enter(rows(8), moved=("both.weight", "down.weight", "gate.weight", "up.weight"))(Gated)


class GatedConvolution(nn.Module):
    """``F.glu`` along channels, and dilated causal convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid = nn.Conv1d(4, 32, 2), nn.Conv1d(16, 64, 2, dilation=2)
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(F.pad(x, (1, 0))), dim=1)
        return self.last(F.glu(self.mid(F.pad(x, (2, 0))), dim=1).mean(-1))


enter(lambda batch: torch.randn(batch, 4, 12), moved=("mid.weight", "last.weight"), select=["mid", "last"])(
    GatedConvolution
)


class Mixture(nn.Module):
    """Every expert on every token, weighted by a softmax over experts."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.router = nn.Linear(8, 16), nn.Linear(16, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(3)
        )
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights = self.router(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return self.out(x + (outputs * weights.unsqueeze(-2)).sum(-1))


enter(rows(8), moved=("experts.0.0.weight", "experts.2.2.weight", "out.weight", "router.weight"),
      select=["experts*", "out", "router"])(Mixture)  # fmt: skip


class Autoencoder(nn.Module):
    """The decoder multiplies by the transposed weight of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 24)
        self.bias = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.two(F.relu(self.one(x))))
        return F.relu(code @ self.two.weight) @ self.one.weight + self.bias


enter(rows(16), moved=("two.weight",))(Autoencoder)


class Twice(nn.Module):
    """One layer called twice: what it gives is what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.again(F.relu(self.again(self.first(x))))))


enter(rows(8), moved=("again.weight",))(Twice)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = (
            nn.Linear(8, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 4),
        )
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.b(F.relu(self.a(F.relu(self.first(x)))))))


enter(rows(8), moved=("a.weight", "last.weight"), select=["a", "last"])(Tied)


class Bag(nn.Module):
    """An embedding, a tied head, positions, and a mean over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(32, 16), nn.Parameter(torch.randn(1, 6, 16))
        self.mid, self.back = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places
        return self.head(x + self.back(F.relu(self.mid(x))))


enter(words(), moved=("mid.weight", "back.weight"))(Bag)


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(16, 8)
        self.core = nn.Parameter(torch.randn(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(torch.einsum("btc,cd->btd", F.relu(self.first(x)), self.core)))


enter(tokens(8), moved=("last.weight",))(Einsum)


class WeightNorm(nn.Module):
    """A weight computed from two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(8, 16))
        self.mid, self.last = nn.Linear(16, 32), parametrizations.weight_norm(nn.Linear(32, 8), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.mid(F.relu(self.first(x)))))


enter(rows(8), moved=("mid.weight",))(WeightNorm)


class SpectralNorm(nn.Module):
    """A weight divided by a norm that a buffer of its own order estimates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = parametrizations.spectral_norm(nn.Linear(8, 16)), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


enter(rows(8), stays="its input channels stay")(SpectralNorm)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.last = (
            nn.Embedding(32, 16),
            nn.LSTM(16, 16, batch_first=True),
            nn.Linear(16, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(self.words(x))[0][:, -1])


enter(words(), stays="the order of what aten::lstm gives, which has no rule")(Recurrent)


class RecurrentInside(nn.Module):
    """What stands apart from the LSTM is permuted all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.mid, self.last = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.mid(self.lstm(x)[0])))


enter(tokens(8), moved=("last.weight",), kept=(("mid.weight", "what aten::gru gives, which has no rule"),))(
    RecurrentInside
)


class Branches(nn.Module):
    """What runs depends on numbers: no graph holds for other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x if x.sum() > 0 else x.flip(1))


enter(rows(8), stays="no graph of it holds for other inputs")(Branches)


class Written(nn.Module):
    """Channels written over in place, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x[:, 3] = 0
        return self.last(F.relu(self.mid(x)))


enter(rows(8), moved=("last.weight",))(Written)
