"""Routers: will the near model's answer be good enough? One file each behind the seam of `base.py`."""
