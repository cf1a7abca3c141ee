"""What tests that train in this process share."""

import pytest


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """Accelerate keeps one state a process; runs of other precision in the same process need a new one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
