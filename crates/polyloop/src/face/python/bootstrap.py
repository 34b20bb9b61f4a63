# A worker of polyloop for a Rust program: looks for the package. If there is none that fits, it says over its standard
# input, which is a socket, what is to be installed. Any Python 3 must understand this.
import os
import sys

version, protocol, exitcode = sys.argv[1:4]
del sys.argv[1:]

problem = None
try:
    import polyloop

    found = getattr(polyloop, "__version__", None)
    if found != version:
        problem = "has polyloop %s, and this program needs %s" % (found or "of an unknown version", version)
    else:
        from polyloop import _core

        if str(getattr(_core, "PROTOCOL", None)) != protocol:
            problem = "has a polyloop %s that was built from other sources than this program's" % found
except ImportError as error:
    if getattr(error, "name", None) == "polyloop" and type(error) is not ImportError:
        problem = "has no polyloop"
    else:
        problem = "has a polyloop that it can't import (%s)" % error

if problem is None:
    from polyloop._rust_worker import main

    main()
else:
    advice = "%s %s: run `%s -m pip install polyloop==%s`" % (sys.executable, problem, sys.executable, version)
    os.write(0, advice.encode("utf-8", "replace"))
    os._exit(int(exitcode))
