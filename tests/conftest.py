"""What holds for all tests, whoever starts them."""

import signal

from hypothesis import settings

# A shell starts what it puts into the background with SIGINT ignored, and whatever the tests start would inherit that: with a
# handler of our own in place, exec gives every program its default again (signal(7)).
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # how long one example takes says nothing where others work beside it
settings.load_profile("any machine")
