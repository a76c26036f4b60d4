"""EdgeID: verify people by face and voice, on the device, offline."""
