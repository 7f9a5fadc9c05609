COMMENT
A leak to -90 mV. clash_b has another mechanism of the same SUFFIX.
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

BREAKPOINT { i = gbar * (v + 90) }
