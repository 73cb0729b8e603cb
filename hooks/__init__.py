"""The hooks that come with watchties; each file here is an executable, not a module."""
