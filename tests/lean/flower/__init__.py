"""In place of Flower in the workers and commands of the tests. Celery imports each command that
there is whenever it starts, and Flower, with its web server, takes nearly as long as Celery.
"""
