COMMENT
A gated inward current. clash_a has another mechanism of the same SUFFIX.
ENDCOMMENT

NEURON {
    SUFFIX nfkick
    NONSPECIFIC_CURRENT i
    RANGE gbar
}

UNITS {
    (mV) = (millivolt)
    (mA) = (milliamp)
    (S) = (siemens)
}

PARAMETER { gbar = 0 (S/cm2) }

ASSIGNED {
    v (mV)
    i (mA/cm2)
}

STATE { m }

BREAKPOINT {
    SOLVE states METHOD cnexp
    i = gbar * m * (v - 30)
}

INITIAL { m = 0 }

DERIVATIVE states { m' = (1 / (1 + exp(-(v + 50) / 6)) - m) / 12 }
