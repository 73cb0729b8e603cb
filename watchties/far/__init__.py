"""The programs that run on far hosts: agent.sh and relay.py. Nothing here is imported by the rest."""
