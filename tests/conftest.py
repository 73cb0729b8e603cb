"""What holds for all tests, whoever starts them."""

import signal

# A shell starts what it puts into the background with SIGINT ignored, and whatever the tests start would inherit that: with a
# handler of our own in place, exec gives every program its default again (signal(7)).
signal.signal(signal.SIGINT, signal.default_int_handler)
