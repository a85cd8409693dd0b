//! Compiles the shim with the compiler of whichever MPI is installed, where the feature asks for it.

fn main() {
    println!("cargo:rerun-if-changed=src/shim.c");
    println!("cargo:rerun-if-env-changed=MPICC");
    #[cfg(feature = "mpi")]
    shim();
}

#[cfg(feature = "mpi")]
fn shim() {
    use std::process::Command;

    let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    // Open MPI, MPICH and their descendants all know -show: the command line that they would run.
    let shown = match Command::new(&mpicc).arg("-show").output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => panic!("{mpicc} -show: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("the feature mpi needs {mpicc} (Debian: libopenmpi-dev; $MPICC names another): {error}"),
    };
    cc::Build::new().compiler(&mpicc).file("src/shim.c").warnings(true).compile("lingqu_mpi");
    for flag in shown.split_whitespace() {
        if let Some(folder) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={folder}");
        } else if let Some(library) = flag.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={library}");
        }
    }
}
