"""`python -m watchties.cli`: the same as the command `watchties`."""

from watchties.cli import main

if __name__ == "__main__":
    main(prog_name="watchties")
