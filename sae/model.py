"""The dictionary: one final module, whatever the sparsity rule.

    x_n = normaliser(x)      z = rule(x_n)      x_hat = normaliser^-1(z W_dec + b_dec)

`W_enc [d_sae d_in]` and `W_dec [d_sae d_out]` hold an encoder row and an atom for each latent, contiguous, which is the
layout that every sparse kernel reads. d_out is d_in unless the target (`sae.targets`) is another site. Callers see raw
activations only.

With free atoms the same dictionary is trained in other coordinates: whatever the length of W_dec[i], the latent's
atom is W_dec[i] / length, its encoder row W_enc[i] · length, its bias b_enc[i] · length. Selection, penalties and
thresholds so see what a unit atom would (sae-lens' `rescale_acts_by_decoder_norm`; an L1 penalty is the one of
Anthropic's April 2024 update), and once training is over the length is folded in.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.linalg import vector_norm

from interp.config import canonical, from_json, to_json
from interp.runs import Run
from sae import kernels
from sae.code import Code
from sae.config import SaeConfig
from sae.normaliser import Normaliser, Scale
from sae.rules import Context, build_rule
from sae.targets import build_target, check_rule_target

WEIGHTS = "dictionary.safetensors"
PIECE_FLOATS = 1 << 25
"""Largest matrix of pre-activations in evaluation, in floats (128 MiB in float32)."""


class Sae(nn.Module):
    """A sparse dictionary over activations of width d_in."""

    def __init__(self, config: SaeConfig) -> None:
        """Make a dictionary with random unit atoms and a tied encoder (`sae.initialise` fits it to data)."""
        super().__init__()
        self.config = config
        self.d_in, self.d_sae, self.d_out = config.d_in, config.d_sae, config.d_out
        self.W_enc = nn.Parameter(torch.zeros(config.d_sae, config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, config.d_out))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))
        self.normaliser = Normaliser(config.normalise, config.target.blocks)
        self.rule = build_rule(config.rule, config.d_in, config.d_sae, config.rule_args)
        self.target = build_target(config)
        check_rule_target(config, self.rule)
        self.W_enc.requires_grad_(not self.rule.tied)
        self.unit_atoms = config.atoms == "unit"
        self._pre: Tensor | None = None

    def unit(
        self,
    ) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"], Float[Tensor, "d_sae d_out"]]:
        """Return (encoder rows, encoder biases, atoms) for atoms of length 1, with gradients to the parameters.

        Where the rule is tied, the rows are the atoms.
        """
        if self.unit_atoms:
            return self.W_dec if self.rule.tied else self.W_enc, self.b_enc, self.W_dec
        length = self.length(self.W_dec)
        if self.rule.tied:
            atoms = self.W_dec / length.unsqueeze(1)
            return atoms, self.b_enc * length, atoms
        return self.W_enc * length.unsqueeze(1), self.b_enc * length, self.W_dec / length.unsqueeze(1)

    def length(self, atoms: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, " d_sae"]:
        """Return the length of each atom, in units of which a latent's value counts; never 0.

        It is the target's (`sae.targets`), but the Euclidean one where atoms are the encoder too: a row's projection
        on an atom needs that one.
        """
        length = vector_norm(atoms, dim=1) if self.rule.tied else self.target.length(atoms)
        return length.clamp_min(torch.finfo(atoms.dtype).tiny)

    @property
    def centre(self) -> Float[Tensor, " d_in"] | None:
        """What the encoder subtracts from a normalised row: b_dec, or None where that lies at another site."""
        return self.b_dec if self.target.centred else None

    def centred(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return normalised rows minus `centre`."""
        return x - self.b_dec if self.target.centred else x

    @torch.no_grad()
    def finalise(self) -> None:
        """Fold the length of free atoms into the encoder and fix what the rule's evaluation needs."""
        for parameter, value in zip((self.W_enc, self.b_enc, self.W_dec), self.unit(), strict=True):
            parameter.copy_(value)
        self.unit_atoms = True
        self.rule.finalise()

    def pre(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Return the pre-activations (x - centre) W_enc^T + b_enc of normalised `x`, without a graph.

        While training, the result lives in a buffer that the next call overwrites: at 2048 x 4096 a fresh one costs
        more in page faults than the product itself.
        """
        with torch.no_grad():
            weight, bias, _ = self.unit()
            if self.centre is not None:
                # (x - b_dec) W^T + b_enc = x W^T + (b_enc - W b_dec): one product, no copy of x.
                bias = bias - weight @ self.centre
            if not self.training:
                return torch.addmm(bias, x, weight.t())
            held = self._pre
            if held is None or held.shape[0] < len(x) or (held.dtype, held.device) != (x.dtype, x.device):
                held = self._pre = x.new_empty(len(x), self.d_sae)
            return torch.addmm(bias, x, weight.t(), out=held[: len(x)])

    def select(
        self,
        x: Float[Tensor, "batch d_in"],
        indices: Int[Tensor, "*slots"],
        values: Float[Tensor, "*slots"],
        pointers: Int[Tensor, " batch_plus_1"] | None = None,
    ) -> Code:
        """Return the code of the pre-activations `values` at `indices`, with gradients to x, W_enc, b_enc and centre.

        With `pointers` the slots are in CSR form.
        """
        code = Code(indices, values, self.d_sae, pointers)
        if not torch.is_grad_enabled():
            return code
        weight, bias, _ = self.unit()
        return kernels.preactivation(x, weight, bias, code, self.centre)

    def encode_normalised(self, x: Float[Tensor, "batch d_in"], ctx: Context | None = None) -> Code:
        """Return the code of normalised activations.

        In evaluation a row's code is independent of its batch, so many rows are encoded in pieces of bounded memory.
        """
        ctx = ctx or Context()
        if self.training or torch.is_grad_enabled() or x.shape[0] * self.d_sae <= PIECE_FLOATS:
            return self.rule.encode(x, self, ctx)
        pieces = x.split(max(1, PIECE_FLOATS // self.d_sae))
        return Code.concatenate([self.rule.encode(piece, self, ctx) for piece in pieces])

    def decode_normalised(
        self, code: Code, x: Float[Tensor, "batch d_in"] | None = None
    ) -> Float[Tensor, "batch d_out"]:
        """Return z W_dec + b_dec, in normalised units, plus what the target takes straight from normalised `x`."""
        sparse = kernels.decode(code, self.unit()[2], self.b_dec)
        straight = None if x is None else self.target.bypass(x)
        return sparse if straight is None else sparse + straight

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Code:
        """Return the code of raw activations; leading axes are flattened to rows."""
        return self.encode_normalised(self._rows(x)[0])

    def decode(self, code: Code, scale: Scale | None = None) -> Float[Tensor, "batch d_out"]:
        """Return the raw reconstruction; `layer` normalisation needs the `scale` of the rows that were encoded.

        Raises:
            ValueError: the reconstruction depends on more than the code; call the dictionary on the rows.
        """
        if self.config.target.skip:
            raise ValueError("A transcoder with a skip decodes only with the rows that it reads; call sae(x).")
        if scale is None:
            if self.normaliser.kind == "layer" and self.target.centred:
                raise ValueError(
                    "A dictionary with layer normalisation decodes only with the rows' scale; call sae(x)."
                )
            scale = Scale(None, self.normaliser.factor)
        return self.normaliser.back(self.decode_normalised(code), self.target.scale(scale))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_out"], Code]:
        """Return (reconstruction in raw units, code) of raw activations."""
        rows, scale = self._rows(x)
        code = self.encode_normalised(rows)
        recon = self.normaliser.back(self.decode_normalised(code, rows), self.target.scale(scale))
        return recon.view(*x.shape[:-1], self.d_out), code

    def _rows(self, x: Tensor) -> tuple[Tensor, Scale]:
        """Return the normalised rows of `x` and their scale; a wrong width is refused."""
        if x.shape[-1] != self.d_in:
            raise ValueError(f"The dictionary reads activations of width d_in={self.d_in}, got shape {list(x.shape)}.")
        return self.normaliser.into(x.reshape(-1, self.d_in).to(self.W_enc.dtype))

    def save(self, run: Run) -> None:
        """Write the weights, atoms at length 1, into `run`, with the configuration in the file's own metadata."""
        weights = self.state_dict() | dict(zip(("W_enc", "b_enc", "W_dec"), self.unit(), strict=True))
        tensors = {name: value.detach().contiguous() for name, value in weights.items()}
        if self.rule.tied:  # one tensor under two names, which the format refuses
            tensors["W_enc"] = tensors["W_enc"].clone()
        run.save_tensors(WEIGHTS, tensors, {"config": canonical(to_json(self.config))})


def load_sae(run: Run, device: str | torch.device = "cpu") -> Sae:
    """Return the dictionary that a run of kind "sae" holds, in evaluation mode."""
    if run.kind != "sae":
        raise ValueError(f"{run.ref} is a run of kind {run.kind!r}; a dictionary is in a run of kind 'sae'.")
    return read_sae(run, from_json(SaeConfig, run.config["sae"]), device)


def read_sae(run: Run, config: SaeConfig, device: str | torch.device = "cpu") -> Sae:
    """Return the dictionary that `Sae.save` wrote into a run of any kind, in evaluation mode.

    Raises:
        ValueError: the weights do not fit `config`.
    """
    sae = Sae(config)
    tensors = {name: torch.from_numpy(value) for name, value in run.tensors(WEIGHTS).items()}
    wanted = {name: tuple(value.shape) for name, value in sae.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ValueError(f"{run.ref}: {WEIGHTS} does not fit its configuration (at {', '.join(odd)}); train it again.")
    sae.load_state_dict(tensors)
    sae.unit_atoms = True
    return sae.to(device).eval()
