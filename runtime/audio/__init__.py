"""Sound files to what speech models read: strict reading, resampling, log-mel features."""
