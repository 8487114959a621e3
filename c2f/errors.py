"""The mistakes a user can mend: each says which value, where, and the way out. Anything else is a bug."""


class C2FError(Exception):
    """Printed as `ERROR: message` with exit code 2, never as a traceback."""


class ConfigError(C2FError):
    """A key, name or value in the configuration (or on the command line) that cannot be used."""


class DataError(C2FError):
    """A data file that is missing, damaged or malformed; the message names the file and line."""


class ArtifactError(C2FError):
    """An artifact that is damaged, truncated, or belongs to another method or dataset."""


class MethodError(C2FError):
    """A method cannot go on with valid input (recorded as status `failed`, with this message as the reason)."""


class DivergedError(C2FError):
    """Training produced a loss that is not finite (recorded as status `diverged`)."""


def did_you_mean(name: str, known) -> str:
    """Return ` did you mean 'x'?` for the closest known name, else the list of what is known."""
    import difflib

    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


class BudgetError(C2FError):
    """A budget below what a method can do (recorded as status `infeasible`).

    needs: the least feasible amount, in the unit of `budget` (bytes, or numbers); None where `budget` is `full` and the
    method fills what it is given.
    """

    def __init__(self, needs: int | None, budget):
        self.needs, self.budget = needs, budget
        if needs is None:
            super().__init__(
                f"budget {budget} sets no size for a method that fills its budget; give it numbers-... or bytes-... "
                "under `budgets`, or its size in `params`"
            )
            return
        self.needs = int(needs)
        unit = "numbers" if budget.kind == "numbers" else "bytes"
        super().__init__(
            f"budget {budget} is below the {self.needs:,} {unit} that this method needs here; "
            f"raise `budgets` in the configuration to {unit}-{self.needs} or more (`grid.budgets`, or the method's own)"
        )
