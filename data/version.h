// The version of the project, which every program prints for --version.
#ifndef DATA_VERSION_H
#define DATA_VERSION_H

#define VERSION "0.9"

#endif
