"""What turns similarities into decisions: calibration, fusion, learnt back ends."""
