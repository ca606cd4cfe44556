"""The response evaluator: does the image say more about therapy response than the needle?

Every number follows from statistics that add. A site computes a small frozen object of whole
numbers or sums from its own rows; ``+`` pools two of them; a function of the sum gives the
estimate, its interval, its test. The same code therefore serves one table, several tables and a
federation, and the answer is that of the pooled rows.

    patients     the rows of one centre, checked; they never leave it
    inference    tests, exact intervals, Holm, E-value, the rule for small cells
    strata       2 x 2 tables by stratum: Mantel-Haenszel, CMH, Breslow-Day
    exact        Fisher, the exact odds ratio, the power at the observed margins
    primary      the primary comparison and its verdict
    paired       two calls on the same patients: McNemar, discordance, NRI; IDI
    delong       AUC and paired DeLong, in two rounds
    combine      random effects over centres
    operating    partial AUC, operating points, the error bound of raw scores
    design       terms of a model -> columns
    aliasing     which columns can be estimated, where some follow from others
    logistic     logistic regression by Newton's method, one sum a step
    firth        the same with Firth's penalty, for separated data
    decision     net benefit, calibration error
    subgroups    the primary comparison in subgroups
    weighting    inverse-probability weights

What makes them one analysis, of tables here or of sites far away:

    plan         what is chosen beforehand, and its hash
    queries      what is asked of a centre's rows; what it answers, or withholds
    cells        tables of counts that are told whole or not at all
    codec        a statistic as arrays, and back
    pooling      every centre's answers, added; who must have answered
    models       models and weights, fitted by asking again and again
    publish      which lines of a result are shown
    document     numbers as JSON
    study        what the sections have at hand
    *_section    the sections of the result
    analysis     plan and answers -> the result
"""
