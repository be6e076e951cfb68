"""What a Trainer tells the outside: progress, finished models, lines for the user, and stop requests."""


class Callbacks:
    """Hooks that a Trainer calls. These do nothing."""

    def advance(self, epochs: float, status: str) -> None:
        """Called after every step with the fraction of an epoch that it was."""

    def epoch_end(self, history: dict[str, list[float]]) -> None:
        """Called after every epoch with the losses so far."""

    def model_scored(self, model: dict) -> None:
        """Called with the content of a finished model's checkpoint before it is written. Draws what belongs to it."""

    def model_saved(self, model: dict) -> None:
        """Called with the content of a finished model's checkpoint after it was written."""

    def model_found(self, epoch: int) -> None:
        """Called for every snapshot that an earlier process finished."""

    def log(self, line: str) -> None:
        """Called with a line for the user."""

    def stop_signal(self) -> int:
        """Returns the number of the signal that asked to stop, or 0."""
        return 0
