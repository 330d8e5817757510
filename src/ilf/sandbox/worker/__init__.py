"""What runs in a worker: the judge, its zygote and the programs.

A worker is an interpreter of its own, started by ../processes.py, with the standard library only and no environment:

    main.py        starts them, reads jobs and writes verdicts
    judge.py       evaluates a program's tests, which are nowhere else
    reading.py     how each test is evaluated; scope.py, pytest_like.py  what tests see and import
    channel.py     messages to the program and back, while there is time; remote.py  its objects as tests see them
    zygote.py      forked from the judge before it has read anything; enters isolation once, forks each program
    program.py     a program's process: runs it, and answers the judge with plain data; objects.py  what it says of
                   an object that stays there
    outputs.py     judges programs that read and write, each run of which is a process of script.py
    serialization.py  plain data as text; containers.py  what can be changed, library.py  values of the standard
                   library, arrays.py and frames.py  those of numpy and pandas
    packages.py    imports the packages that are allowed
    isolation.py   namespaces, Landlock and limits; seccomp.py  the system-call filters
"""
