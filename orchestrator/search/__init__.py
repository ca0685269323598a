"""Hyperparameter search: `distill tune`. The truth of a search is its own records (`runs/search_run.py`), not Ray's.

problem.py       what is searched, checked before anything starts; paths.py and objective.py help
points.py        a grid, or random points, known in advance; tpe.py draws from what was learned
suggestions.py   which values are tried next, in a new search and in one that goes on
population.py    population based training: whose turn it is, and who takes whose place
latencies.py     measures how long the models of trials take, when no trial runs
trial.py         one trial, in whatever process: the stages for its metric, without the test split
trial_log.py     keeps the records while trials run; progress.py says so on the terminal
local_trials.py  trials in this process; ray_trials.py, actor.py and tune_parts.py on Ray Tune
run_search.py    the story, from the shared stages to the best plan
"""
