"""The proposal of an evaluation: one checkpoint and scale, with reasons made of the figures. No torch.

The one with the largest harmonic mean of look, prompts kept and, of a subject, 1 - spill / look and 1 - drift is the
best: no good figure makes up for one that is near 0. The look of one that copies a training image counts times
1 - copies. Among all within ``AS_GOOD`` of the best the one with the fewest steps is taken, at the largest scale: what
more steps change beyond noise is seldom for the better. Beside it stand those that none beats in all of these at once
(the Pareto front).

A style may show without its trigger, and on other things: nobody is misled by that.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Literal, NamedTuple

from sdlora.data.settings import Kind
from sdlora.evaluation.figures import Candidate

AS_GOOD = 0.02
"""Difference of two scores that says nothing: about that of other noise."""
OVERFITTED = 0.05
"""Loss of score from the best checkpoint to the last one, at one scale, that is told."""
LITTLE_LOOK = 0.5
"""Share of the look below which an adapter has learnt little."""
STILL_LEARNING = 0.1
"""Gain in look over the last checkpoint that says that more are to come."""
SPILT, SOME_SPILL = 0.75, 0.25
"""Part of a subject's look that shows without the trigger, where its class is lost; spill below which none is."""
PROMPTS_LOST = 0.5
"""Share of ``prompts`` below which they are lost."""
DRIFTED = 0.4
"""Drift of other things from which on they are lost."""
COPIED = 0.5
"""Share of ``copies`` from which on a training image is memorised."""
WORST = 0.1
"""Least value that counts in a score: where a class is lost, it does not matter how far."""

COPIES_REMEDY = "Remove copies of it, train fewer steps, or take more pictures: it is seen too often."

AlarmName = Literal["copies", "spill", "prompts", "drift", "overfitted", "underfitted"]


class Alarm(NamedTuple):
    """Something wrong with the adapter as it was trained, what is seen of it, and what to change."""

    name: AlarmName
    text: str
    remedy: str


@dataclass(frozen=True)
class TrainedAs:
    """Settings of a training that advice depends on."""

    prior_weight: float = 0.0
    captions: bool = True
    """Whether captions say more than trigger and class."""


@dataclass(frozen=True)
class Proposal:
    """The candidate that we would take, with reasons."""

    chosen: int | None = None
    """Its number in the list of candidates; None if there is none to take."""
    front: tuple[int, ...] = ()
    """Candidates that no other beats in look, prompts kept and spill at once."""
    reasons: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of all candidates that it names."""
        return self.front if self.chosen is None else (*self.front, self.chosen)


def propose(candidates: Sequence[Candidate], kind: Kind, trained_as: TrainedAs) -> Proposal:
    """Propose one of ``candidates``, which are of one run and of any scales."""
    rated = [number for number, each in enumerate(candidates) if each.share("look") is not None]
    if not rated:
        told = (
            "Nothing can be proposed: the training pictures are no nearer to each other than the base's pictures are."
        )
        return Proposal(reasons=(told,))
    by_step = _at_one_scale(candidates)
    alarms = tuple(_alarms(by_step, kind, trained_as))
    if all((candidates[number].share("look") or 0) <= 0 for number in rated):
        told = "Nothing is proposed: no candidate is nearer to the training pictures than the base without an adapter."
        return Proposal(reasons=(told,), alarms=alarms)
    front = tuple(number for number in rated if not any(_beats(candidates[o], candidates[number], kind) for o in rated))
    lost = _is_class_lost(candidates)
    scores = {number: score(candidates[number], kind, lost) for number in rated}
    best = max(scores.values())
    as_good = [number for number in rated if scores[number] >= best - AS_GOOD]
    chosen = min(as_good, key=lambda number: (candidates[number].step, -candidates[number].scale))
    reasons = (_taken(candidates[chosen], kind), *_turning_points(by_step, kind))
    return Proposal(chosen, front, reasons, alarms)


def score(candidate: Candidate, kind: Kind, class_lost: bool = False) -> float:
    """Return the harmonic mean of what a proposal weighs, each limited to ``WORST`` and 1.

    With ``class_lost`` the class of a subject does not count: where all candidates have lost it, it parts none of them,
    and would make all others' differences small.
    """
    return harmonic_mean([max(WORST, min(1.0, value)) for value in _goods(candidate, kind, class_lost)])


def as_trained(scales: Iterable[float]) -> float:
    """Return the one of ``scales`` that is nearest to 1, at which an adapter was trained; the larger of two."""
    return min(scales, key=lambda scale: (abs(scale - 1), -scale))


def _is_class_lost(candidates: Sequence[Candidate]) -> bool:
    return not any(_bound(each) for each in candidates)


def _goods(candidate: Candidate, kind: Kind, class_lost: bool = False) -> list[float]:
    """Return the shares that a proposal weighs, the more the better; prompts that were not measured count as kept."""
    look, prompts, drift = (candidate.share(name) for name in ("look", "prompts", "drift"))
    kept = 1.0 if prompts is None else prompts
    own = (look or 0.0) * (1.0 - (candidate.share("copies") or 0.0) if _copies(candidate) else 1.0)
    bound = [] if class_lost else [_bound(candidate)]
    return [own, kept, *([*bound, 1.0 - (drift or 0.0)] if kind == "subject" else [])]


def _bound(candidate: Candidate) -> float:
    """Return the share of a subject's look that is bound to the trigger, 1 - spill / look; 0 where its class is lost.

    Spill alone would praise an adapter that has broken, which shows nothing of the look with the trigger either.
    """
    look, spill = (min(1.0, max(0.0, candidate.share(name) or 0.0)) for name in ("look", "spill"))
    return 1.0 - spill / look if spill < SPILT * look else 0.0


def _beats(one: Candidate, other: Candidate, kind: Kind) -> bool:
    """Return whether ``one`` is as good as ``other`` in everything, and better in something."""
    pairs = [(min(1.0, a), min(1.0, b)) for a, b in zip(_goods(one, kind), _goods(other, kind), strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _at_one_scale(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates at the scale nearest to 1, which is how they were trained, by step."""
    scale = as_trained(each.scale for each in candidates)
    return sorted((each for each in candidates if each.scale == scale), key=lambda each: each.step)


def _taken(candidate: Candidate, kind: Kind) -> str:
    """Return the sentence that says what is taken, by its figures."""
    look, prompts, spill = (candidate.share(name) for name in ("look", "prompts", "spill"))
    facts = [f"it has {look or 0:.0%} of the look of the training pictures"]
    if prompts is not None:
        facts.append(f"keeps {prompts:.0%} of the prompt fidelity that can be had")
    if spill is not None and kind == "subject":
        facts.append(f"shows {max(0.0, spill):.0%} of the look without the trigger")
    told = f"{', '.join(facts[:-1])} and {facts[-1]}" if len(facts) > 1 else facts[0]
    return f"We would take step {candidate.step} at scale {candidate.scale:g}: {told}."


def _turning_points(by_step: Sequence[Candidate], kind: Kind) -> Iterator[str]:
    """Yield a sentence for each step from which on something is wrong up to the last one, at the scale of training."""
    points: list[tuple[Callable[[Candidate], bool], Callable[[Candidate], str]]] = [
        (_copies, lambda each: f"pictures copy {each.copied} when its caption asks for them ({_told(each, 'copies')})"),
        (lambda each: _spills(each, kind), lambda each: f"the class turns into the subject ({_told(each, 'spill')})"),
        (_loses_prompts, lambda each: f"prompts are lost ({_told(each, 'prompts')} of what can be had)"),
        (
            lambda each: _drifts(each, kind),
            lambda each: f"other things change ({_told(each, 'drift')} as far as to another thing)",
        ),
    ]
    for is_wrong, describe in points:
        if first := _first_for_good(by_step, is_wrong):
            yield f"From step {first.step} on {describe(by_step[-1])}."
    little = [each for each in by_step if (each.share("look") or 0) < LITTLE_LOOK]
    if little and little[-1] is not by_step[-1]:
        yield f"Up to step {little[-1].step} the look is hardly there ({_told(little[-1], 'look')})."


def _first_for_good(by_step: Sequence[Candidate], is_wrong: Callable[[Candidate], bool]) -> Candidate | None:
    """Return the first candidate from which on all are wrong; None if the last one is not."""
    first = None
    for each in reversed(by_step):
        if not is_wrong(each):
            break
        first = each
    return first


def _alarms(by_step: Sequence[Candidate], kind: Kind, trained_as: TrainedAs) -> Iterator[Alarm]:
    """Yield what is wrong with the last checkpoint at the scale of training."""
    last = by_step[-1]
    if _copies(last):
        told = f"asked for by its caption, {last.copied} comes from every noise ({_told(last, 'copies')})"
        yield Alarm("copies", f"Memorised: {told}.", COPIES_REMEDY)
    if _spills(last, kind):
        told = f"{_told(last, 'spill')} of the look shows without the trigger"
        yield Alarm("spill", f"Spill: {told}.", _spill_remedy(trained_as))
    if _loses_prompts(last):
        remedy = "Take a checkpoint with fewer steps, or a lower train.learning_rate"
        if not trained_as.captions:
            remedy = "Write captions (sdlora caption): what they name is not learnt with the look"
        yield Alarm("prompts", f"Prompts lost: {_told(last, 'prompts')} of what can be had is kept.", f"{remedy}.")
    if _drifts(last, kind):
        told = f"things that were not trained change, {_told(last, 'drift')} as far as to another thing"
        yield Alarm("drift", f"Drift: {told}.", "Take a lower scale, fewer steps, or prior preservation.")
    yield from _fit_alarms(by_step, kind)


def _fit_alarms(by_step: Sequence[Candidate], kind: Kind) -> Iterator[Alarm]:
    """Yield whether the training was too long, or too short."""
    last = by_step[-1]
    lost = _is_class_lost(by_step)
    scores = {each.step: score(each, kind, lost) for each in by_step}
    best = max(by_step, key=lambda each: (scores[each.step], -each.step))
    gain = (last.share("look") or 0) - max((each.share("look") or 0 for each in by_step[:-1]), default=0)
    if scores[best.step] - scores[last.step] > OVERFITTED:
        told = f"step {best.step} is better than the last, {scores[best.step]:.2f} against {scores[last.step]:.2f}"
        remedy = f"Train to about step {best.step} (train.steps), or with a lower train.learning_rate."
        yield Alarm("overfitted", f"Overfitted: {told}.", remedy)
    elif (last.share("look") or 0) < LITTLE_LOOK:
        told = f"the last step has {_told(last, 'look')} of the look"
        remedy = f"Train longer (train.steps = {2 * last.step}), or with a higher train.learning_rate."
        yield Alarm("underfitted", f"Underfitted: {told}.", remedy)
    elif len(by_step) > 1 and gain > STILL_LEARNING and best is last:
        told = f"the look still grew by {gain:.0%} up to the last step"
        yield Alarm("underfitted", f"Still learning: {told}.", f"Try train.steps = {3 * last.step // 2}.")


def _copies(candidate: Candidate) -> bool:
    return (candidate.share("copies") or 0) >= COPIED


def _spill_remedy(trained_as: TrainedAs) -> str:
    if not trained_as.prior_weight:
        return "Set prior.weight = 1: class pictures keep the base's idea of the class."
    return "Take more class pictures (prior.count), a larger prior.weight, or fewer steps."


def _spills(candidate: Candidate, kind: Kind) -> bool:
    """Return whether a subject's class is lost."""
    spill = candidate.share("spill") or 0.0
    return kind == "subject" and spill >= SOME_SPILL and _bound(candidate) <= 1.0 - SPILT


def _loses_prompts(candidate: Candidate) -> bool:
    kept = candidate.share("prompts")
    return kept is not None and kept < PROMPTS_LOST


def _drifts(candidate: Candidate, kind: Kind) -> bool:
    return kind == "subject" and (candidate.share("drift") or 0) >= DRIFTED


def _told(candidate: Candidate, measure: str) -> str:
    """Return the share of a measure as people read it."""
    share = candidate.share(measure)
    return "an unknown share" if share is None else f"{round(share, 2) + 0.0:.0%}"  # -0.0 is 0%.
