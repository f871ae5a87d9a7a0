"""The storm: tasks of many kinds run while every part of Farcall is killed, stopped, cut off, filled up or misled.

``python -m tests.storm --tasks 100000 --setting both --seed N`` in the root of the checkout. It needs Linux's
namespaces, in which it makes hosts, disks and a set of processes of its own, so that nothing of it reaches the machine
and nothing outlives it.

==============  =======================================================================================
``hosts``       machines made of network namespaces, the cables between them, small disks
``clocks``      clocks that jump for some programs only
``parts``       processes that are started again when they end, as an init system does
``settings``    the two settings of the service, set up on such hosts
``tasks``       kinds of tasks: what they do, and what must come of them
``faults``      what is done to the parts
``schedule``    which tasks and which faults, from a seed
``client``      submits the tasks and notes what it sees
``visitor``     a client that submits and is gone
``marks``       what the tasks note of themselves
``checks``      what must be so at the end
``losses``      of which tasks a fault explains that they were lost
``report``      figures
==============  =======================================================================================
"""
