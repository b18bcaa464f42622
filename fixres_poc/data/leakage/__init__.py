"""Has the network seen the test images, and do images stand in a data set twice?"""
