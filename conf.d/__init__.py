"""The configuration fragments that `watchties init` copies."""
