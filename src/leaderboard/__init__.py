"""The leaderboard: every mitigation on the same models, tuned alike, attacked, and judged against never-planted twins.

cases     the models
entrants  who takes part, and with which settings to try
protocol  the jobs: train, try on the first seed, run and attack the chosen settings on every seed
evidence  the records and values of a case, in one bundle
score     columns, score and ranks with bootstrap intervals
report    tables and figures from bundles alone
"""
