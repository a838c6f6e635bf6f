"""The leaderboard: mitigations on the same models, tuned alike, attacked, and judged against never-planted twins.

cases     the models
entrants  the mitigations that take part, and the settings they try
protocol  the jobs: train, try settings on the first seed, run and attack the chosen ones on every seed
evidence  the records and values of a case, bundled in files
score     columns, score and ranks with bootstrap intervals
report    tables and pages, from evidence alone
"""
