// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// longestLine bounds a line of text, in bytes. A store path is much shorter.
const longestLine = 4096

// lineReader reads a hostile text of any length line by line.
type lineReader struct {
	text   *bufio.Reader
	number int // of the line that was read last
}

func newLineReader(text io.Reader) lineReader {
	return lineReader{text: bufio.NewReaderSize(text, longestLine)}
}

// next returns the next line, without its line break. The line is valid until the next
// call. A last line without a line break comes with io.EOF.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.text.ReadSlice('\n')
	if err == nil || len(line) > 0 {
		l.number++
	}
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("longer than %d bytes", longestLine)
	case err != nil:
		return line, err
	}
	return line[:len(line)-1], nil
}
