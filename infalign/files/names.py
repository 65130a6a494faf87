"""Words of the tables that computing needs to know, apart from how tables are read."""

REFERENCE = "reference"  # the reference policy's name among the policies
SELECTING = "selecting"  # the judge whose reward training and the procedure go by, as deployed
INDEPENDENT = "independent"  # the judge that only compares, if there is one
# Of a policy under its objective's own procedure, in this order wherever it is short.
HEADLINE = ("win_rate", "low", "high", "limit", "efficiency", "kl")
GOLD = "gold"  # the utility that the built-in corpus's labels were drawn from
