"""How does a checkpoint become files a device can run?"""
