"""What might the next tokens be?"""
