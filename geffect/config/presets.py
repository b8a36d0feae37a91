"""Presets: the settings that a benchmark publishes for a method, by name."""

from collections.abc import Mapping

from geffect.errors import unknown_name

_OPEN_UNLEARNING: Mapping[str, object] = {
    "objective": "",
    "learning_rate": 1e-5,
    "batch_size": 8,
    "grad_accum_steps": 4,
}
# open-unlearning counts blocks from 0, so that its layer 7 is hidden state 8 here
_METHODS: Mapping[str, Mapping[str, object]] = {
    "GradAscent": {"objective": "ga"},
    "GradDiff": {"objective": "ga + gd"},
    "NPO": {"objective": "npo(beta=0.1) + gd"},
    "SimNPO": {"objective": "0.125*simnpo(beta=4.5, gamma=0) + gd"},
    "WGA": {"objective": "wga(alpha=1) + gd"},
    "SatImp": {"objective": "0.1*satimp(beta1=5, beta2=1) + gd"},
    "RMU": {"objective": "rmu(layer=8, c=2, vector=normalized, dims=mean) + rr(layer=8, dims=mean)"},
    "DPO": {"objective": "dpo(beta=0.1, variant=npo) + gd"},
    "UNDIAL": {"objective": "undial(beta=10)", "learning_rate": 1e-4},
    "CE-U": {"objective": "ceu(skip=1)"},
    "PDU": {"objective": "pdu + dual(gd, eps=0.3, eta=5, start=100)"},
}
PRESETS: Mapping[str, Mapping[str, object]] = {
    f"open_unlearning:{name}": {**_OPEN_UNLEARNING, **settings} for name, settings in _METHODS.items()
}


def preset_settings(name: str) -> dict[str, object]:
    """Setting → value of a preset; upper and lower case are the same.

    Raises:
        GeffectError: there is no such preset.

    >>> preset_settings("open_unlearning:npo")["objective"]
    'npo(beta=0.1) + gd'
    """
    by_name = {key.lower(): settings for key, settings in PRESETS.items()}
    if name.lower() not in by_name:
        raise unknown_name("a preset", name, PRESETS)
    return dict(by_name[name.lower()])
