"""Parts of compare_servers.py."""
