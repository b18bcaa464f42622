"""Has the network seen the test images, and do images stand in a dataset twice?"""
