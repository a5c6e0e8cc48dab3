// The version of the project, which every program prints with --version.
#ifndef DATA_OPTIONS_VERSION_H
#define DATA_OPTIONS_VERSION_H

#define VERSION "0.9"

#endif
