"""What a run would take on devices that are not here: the reports of `drumline check CONFIG --gpu NAME`.

    hardware.py     the devices' figures, by their makers
    request.py      what the command line says of the cluster, with its units
    assumptions.py  the cluster's figures, from the command line, data sheets and defaults
    cost.py         the seconds of an update, by arithmetic
    plan.py         the micro-batch and the recomputation that fit and are fastest
    report.py       all of it as lines, with what each number rests on

docs/scaling.md has the formulas, and holds them beside published figures. No TensorFlow.
"""
