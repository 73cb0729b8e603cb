"""The user service, as a package so that it is found where watchties is installed."""
