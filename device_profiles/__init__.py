"""What can this device do?"""
