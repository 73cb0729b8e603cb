"""The example job: a program that fits coupled oscillators, and a generator for its input."""
