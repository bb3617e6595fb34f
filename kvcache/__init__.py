"""What has the model seen, and what may we assume it will see?"""
