"""`warpup continual`: learn five tasks one after the other, with a bound on how much of the old ones can be lost.

Digits 0/1, 2/3, 4/5, 6/7, 8/9, each pair a task of its own; data of earlier tasks are gone. After each task every
earlier one is measured (accuracy of the network in use) and certified: the share of its test images that *every*
network of the remaining weight box classifies right. Three ways to learn:
    intercontinet   the box of a task lies in the one before, so a certificate holds for all that is trained later
    hyperinterval   a hypernetwork makes a weight box for each task; the one network of the universal embedding lies in
                    all of them, so the certificates of a moment hold for the network of that moment. How far they fall
                    while later tasks are learned is limited by the drift term alone
    finetune        no intervals, no certificate: what the other two are held against
The command fails if an accuracy falls below a certificate that covers it.

Scenarios, as the papers name them: "task" (incremental task: ten outputs, the task of an image is known and chooses two
of them) and "domain" (incremental domain: two outputs for all tasks, first or second digit of the pair). The papers
report both, InterContiNet incremental classes too.

Certificates are computed in float64 from the float32 boxes, and so are the accuracies: rounding is around 1e-15.

`settings.py` options, `learners.py` the tasks and the three ways, `run.py` one run, `command.py` the command,
`report.py` what it shows.
"""
