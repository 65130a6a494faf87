"""Words of the tables that computing needs to know, apart from how tables are read."""

REFERENCE = "reference"  # the reference policy's name among the policies
SELECTING = "selecting"  # the judge whose reward training and the procedure go by, as deployed
INDEPENDENT = "independent"  # the judge that only compares, if there is one
GOLD = "gold"  # the utility that the built-in corpus's labels were drawn from
