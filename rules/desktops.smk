# Needs: a Docker daemon or, without one, mmdebstrap; envs/desktop and the guest's code; Debian's archive. Makes: the
# desktop image in that daemon, or as one squashfs for all studies of this user, and a record of it. Only studies
# whose desktops are containers of our own image ask for it.


rule build_desktop_image:
    input:
        image_files(),
    output:
        "<results>/desktop_image.json",
    log:
        "<logs>/build_desktop_image.log",
    benchmark:
        "<benchmarks>/build_desktop_image.tsv"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        decides=decides(study.config, "build_desktop_image"),
    script:
        "../scripts/build_desktop_image.py"
