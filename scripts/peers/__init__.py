"""Parts of compare_peers.py: contenders (measure), the machine and its limits (machine), the report (report)."""
