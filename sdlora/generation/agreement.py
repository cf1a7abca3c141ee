"""Whether an adapter was trained with what a base is drawn with: its header beside the base's schedule."""

from collections.abc import Collection, Mapping
from typing import Any

from sdlora.diffusion.schedule import ZERO_SNR

PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon"}
"""ModelSpec's words, and ours."""
SWITCH = {"True": "on", "False": "off"}


def trained_schedule(metadata: Mapping[str, str]) -> dict[str, str]:
    """What an adapter's header tells of the base in its training, by the names of ``Model``'s settings."""
    prediction = PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""))
    zero_snr = SWITCH.get(metadata.get("ss_zero_terminal_snr", ""))
    found = {"prediction_type": prediction, "zero_terminal_snr": zero_snr}
    return {name: value for name, value in found.items() if value}


def schedule_mismatch(
    name: str, metadata: Mapping[str, str], scheduler_config: Mapping[str, Any], said: Collection[str] = ()
) -> str:
    """One sentence on what adapter ``name`` was trained with and the base does not have; empty if there is nothing.

    ``said`` are the settings that a person has decided: of those there is nothing to tell.
    """
    zero_snr = SWITCH[str(bool(scheduler_config.get(ZERO_SNR)))]
    drawn = {"prediction_type": scheduler_config.get("prediction_type", "epsilon"), "zero_terminal_snr": zero_snr}
    trained = {
        key: value for key, value in trained_schedule(metadata).items() if key not in said and value != drawn[key]
    }
    if not trained:
        return ""
    theirs, ours = (" and ".join(f"{key} {values[key]}" for key in trained) for values in (trained, drawn))
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in trained.items())
    return (
        f"adapter {name!r} was trained with {theirs}, and the base is taken to have {ours}; if its pictures are wrong, "
        f"give {flags} (on the page: Advanced)"
    )
