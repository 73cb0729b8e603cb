"""How often a network step is tried again within one run of a hook: the first of two layers of retries.

Knows: tenacity, and which failures are worth another try (their type says so).
Must not know: what is tried. The second layer, minutes to days, is the daemon's, from exit code 75.
"""

import time

from tenacity import Retrying, retry_if_exception, wait_random_exponential

from watchties.errors import NotNow, Unreachable

TRIES = 4  # with the waits below, some ten seconds
TRIES_UNREACHABLE = 2  # the daemon's breaker does the rest, at no cost for the jobs
WAIT = wait_random_exponential(multiplier=0.5, max=8)  # seconds, with full jitter


def network(function, *args, sleep=time.sleep, **named):
    """Return function(*args, **named), tried again while what it raises is transient; raise the last error as it is."""
    again = retry_if_exception(is_worth_another_try)
    policy = Retrying(retry=again, stop=_enough, wait=WAIT, sleep=sleep, before_sleep=_tell, reraise=True)
    return policy(function, *args, **named)


def is_worth_another_try(error):
    """Return whether to try again in a moment. NotNow asks for more time than a hook has, and so does a disk that is full: of a batch
    that is halved again and again each part would wait."""
    return getattr(error, "transient", False) and not isinstance(error, NotNow) and not getattr(error, "no_space", False)


def _enough(state):
    limit = TRIES_UNREACHABLE if isinstance(state.outcome.exception(), Unreachable) else TRIES
    return state.attempt_number >= limit


def _tell(state):
    print(f"try {state.attempt_number}: {state.outcome.exception()}; again in {state.next_action.sleep:.1f} s", flush=True)
