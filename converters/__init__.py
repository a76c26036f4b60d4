"""Offline: train, import, convert and calibrate networks (needs ``edgeid[convert]``)."""
