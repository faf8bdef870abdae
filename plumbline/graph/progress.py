"""How far a run is: steps done and time left, corrected by what its steps took so far."""

from __future__ import annotations

from pathlib import Path

from plumbline.graph.forecast import Forecast
from plumbline.graph.rates import read_rates, write_rate


class RunProgress:
    """Counts the steps of a run against its forecast, and notes what they took for the next one."""

    def __init__(self, root: Path, forecast: Forecast | None) -> None:
        """Start.

        Args:
            forecast: None: only the steps are counted.
        """
        self.root, self.done = root, 0
        self.steps = {entry.asset: entry.steps for entry in forecast.work} if forecast else {}
        self.seconds = {entry.asset: entry.seconds / entry.steps for entry in forecast.work} if forecast else {}
        self.predicted = self.taken = 0.0

    def before(self, asset: str, count: int) -> str:
        """What to say when steps of an asset begin, such as `[5 of 45, 3:10 left] `; empty without a forecast."""
        if not self.steps:
            return ""
        total = self.done + max(sum(self.steps.values()), count)
        which = f"{self.done + 1}" if count == 1 else f"{self.done + 1}–{self.done + count}"
        return f"[{which} of {total}, {clock(self.left())} left] "

    def left(self) -> float:
        """Seconds that the remaining steps take, as far as is known."""
        remaining = sum(self.seconds[asset] * count for asset, count in self.steps.items() if count > 0)
        done = self.predicted
        pace = (self.taken + remaining) / (done + remaining) if done and done + remaining else 1.0
        return remaining * pace

    def after(self, asset: str, count: int, seconds: float) -> None:
        """Note that steps of an asset are done."""
        self.done += count
        if asset not in self.steps:
            return
        predicted = self.seconds[asset] * count
        self.steps[asset] = max(0, self.steps[asset] - count)
        self.predicted += predicted
        self.taken += seconds
        if predicted > 0:
            write_rate(self.root, asset, read_rates(self.root).get(asset, 1.0) * seconds / predicted)

    def skipped(self, asset: str) -> None:
        """Note that what is left of an asset's steps need not run."""
        if asset in self.steps:
            self.steps[asset] = 0


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 3:10; with hours from one on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
